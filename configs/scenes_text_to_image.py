"""Text to image in pixels: coloured shapes on grey grounds, drawn from what a caption says.

A small DDPM U-Net (Ho et al. 2020, arXiv:2006.11239) whose lower levels attend to the words of a caption as latent
diffusion does (Rombach et al. 2022, arXiv:2112.10752), trained together with a transformer that reads the words; flow
matching (Lipman et al. 2022, arXiv:2210.02747) with the times of SD3 (Esser et al. 2024, arXiv:2403.03206), sampled
with classifier-free guidance. The scenes, of 24x24 pixels, are made as they are read. No download.

Expected: not measured yet. The judge, `prompt_adherence`, reads the samples of the data's own prompts by rules.

    python -m experiments.train --config=configs/scenes_text_to_image.py --workdir=runs/scenes
    python -m experiments.sample --workdir=runs/scenes --prompt="a red star left of a blue ring" --num_samples=16
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dataset = "scenes"
    config.data.options = ConfigDict(dict(size=24, max_objects=2, textured=False, num_examples=50_000))
    config.data.split = "train"
    config.data.validation_split = "validation"
    config.data.data_dir = ""
    config.data.image_size = 24
    config.data.crop = "none"
    config.data.flip = False  # a mirrored picture is not what its caption says
    config.data.num_workers = 0

    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=48, pooled=True, dropout=0.0))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=200))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=64, depth=2, num_heads=4))

    config.model = ConfigDict(
        dict(
            name="unet",
            base_channels=48,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(12, 6),
            num_heads=4,
        )
    )

    config.schedule = ConfigDict(dict(name="rectified_flow"))
    config.prediction = ConfigDict(dict(name="velocity"))
    config.time_input = ConfigDict(dict(name="scaled_t", scale=1000.0))
    config.time_sampler = ConfigDict(dict(name="logit_normal", mean=0.0, std=1.0))
    config.objective = ConfigDict(dict(name="flow_matching"))

    config.train = ConfigDict()
    config.train.steps = 20_000
    config.train.batch_size = 64
    config.train.accumulation = 1
    config.train.dtype = "float32"
    config.train.class_conditional = False
    config.train.conditioning_dropout = 0.1

    config.optimizer = ConfigDict(dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8))
    config.optimizer.warmup_steps = 200
    config.optimizer.decay = "cosine"
    config.optimizer.decay_steps = 0
    config.optimizer.clip_norm = 1.0

    config.ema = ConfigDict()
    config.ema.decays = ()
    config.ema.half_lives = (50_000,)
    config.ema.widths = ()
    config.ema.ramp_up_ratio = 0.05

    config.parallel = ConfigDict()
    config.parallel.strategy = "jit"
    config.parallel.data = -1
    config.parallel.fsdp = 1
    config.parallel.tensor = 1
    config.parallel.context = 1
    config.parallel.rules = ()

    config.sampling = ConfigDict()
    config.sampling.sampler = ConfigDict(dict(name="flow_heun"))
    config.sampling.grid = ConfigDict(dict(name="uniform"))
    config.sampling.steps = 16
    config.sampling.guidance_scale = 3.0
    config.sampling.guidance_interval = ()
    config.sampling.guide = ""
    config.sampling.guide_ema = ""
    config.sampling.clip_x0 = False
    config.sampling.ema = ""
    config.sampling.batch_size = 100

    config.log = ConfigDict()
    config.log.every = 100
    config.log.validate_every = 1_000
    config.log.validation_examples = 512
    config.log.sample_every = 1_000
    config.log.num_samples = 32

    config.checkpoint = ConfigDict()
    config.checkpoint.directory = ""
    config.checkpoint.every = 1_000
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 0
    config.checkpoint.best_metric = "validation_loss"
    config.checkpoint.best_mode = "min"

    config.evaluation = ConfigDict()
    config.evaluation.metrics = ("prompt_adherence",)
    config.evaluation.num_samples = 300
    config.evaluation.max_real = 2_000
    config.evaluation.inception = ""
    config.evaluation.convention = "tf"
    config.evaluation.reference = ""
    config.evaluation.dinov2 = ""
    config.evaluation.dinov2_reference = ""
    config.evaluation.clip = ""
    config.evaluation.prompt = "a photo of a {}"
    config.evaluation.likelihood_images = 360
    config.evaluation.bins = 256
    return config
