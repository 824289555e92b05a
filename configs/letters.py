"""Legible words: what a network must be told about letters so that it can write them.

A small DDPM U-Net (Ho et al. 2020, arXiv:2006.11239) with flow matching (Lipman et al. 2022, arXiv:2210.02747) that
paints words of one to four letters and digits on 32x32 pixels, in colours and fonts that the prompt names. Two things
make it aware of characters. The prompt is read as bytes instead of words, as in ByT5 (Liu et al. 2023,
arXiv:2212.10562, show that models that read characters spell better). A glyph canvas, which is a picture of the
letters, enters beside the input, as in GlyphControl (Yang et al. 2023, arXiv:2305.18259).

`:both`, the default, has both; `:bytes` and `:words` have no canvas. `:canvas` cuts the bytes away, so that the network
is not told colours and grounds. `:large` has both and a larger network, for words of three to eight characters on 64x64
pixels.

The judge, `word_accuracy`, is RapidOCR, which takes no part in the training: `pip install '.[judges]'`. Half of its
prompts ask for strings and fonts that the training never shows. docs/letters.md says how the judge was tested, what
true renders score and what trainings have reached.

    python -m experiments.prepare_data --dataset=glyphs
    python -m experiments.train --config=configs/letters.py --workdir=runs/letters
    python -m experiments.evaluate --workdir=runs/letters --metrics=word_accuracy
    python -m experiments.sample --workdir=runs/letters --prompt='the word "k7" in red, set in Arvo, on cream'
"""

from ml_collections import ConfigDict

from configs.base import runner

CONDITIONS = ("both", "bytes", "canvas", "words", "large")


def get_config(condition: str = "both") -> ConfigDict:
    """The recipe with one of `CONDITIONS`."""
    if condition not in CONDITIONS:
        raise ValueError(f"{condition!r} is none of {', '.join(CONDITIONS)}")
    config = runner()
    config.update(
        data=dict(dataset="glyphs", image_size=32, validation_split="validation"),
        model=dict(name="unet", base_channels=32, channel_multipliers=(1, 2, 2), attention_resolutions=(8,)),
        process=dict(
            name="gaussian",
            schedule=dict(name="rectified_flow"),
            prediction=dict(name="velocity"),
            time_input=dict(name="scaled_t", scale=1000.0),
        ),
        time_sampler=dict(name="logit_normal", mean=0.0, std=1.0),
        objective=dict(name="flow_matching"),
        train=dict(steps=4_000, batch_size=32, conditioning_dropout=0.1),
        optimizer=dict(name="adam", learning_rate=1e-3, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0),
        ema=dict(half_lives=(10_000,)),
        sampling=dict(sampler=dict(name="flow_heun"), steps=12, guidance=dict(scale=2.0), batch_size=50),
        log=dict(every=50, validate_every=1_000, validation_examples=256, sample_every=1_000, num_samples=24),
        checkpoint=dict(every=500),
        evaluation=dict(metrics=("word_accuracy", "edit_distance"), num_samples=200, max_real=2_000),
    )
    config.data.options = ConfigDict(dict(size=32, least_length=1, most_length=4, place="middle", fonts="fetched"))
    config.data.options.update(num_examples=20_000, num_test=1_000)
    config.conditioning = ConfigDict()
    config.conditioning.text = ConfigDict(dict(length=72, pooled=True, dropout=0.0, canvas=32))
    config.conditioning.text.tokenizer = ConfigDict(dict(name="bytes"))
    config.conditioning.text.encoder = ConfigDict(dict(name="transformer", width=64, depth=2, num_heads=4))
    config.model.update(num_res_blocks=1, num_heads=4)
    config.optimizer.update(warmup_steps=100, decay="cosine")
    return _large(config) if condition == "large" else _told(config, condition)


def _told(config: ConfigDict, condition: str) -> ConfigDict:
    """The conditions that tell the network about the text."""
    if condition in ("bytes", "words"):
        config.conditioning.text.canvas = 0
    if condition == "words":
        config.conditioning.text.tokenizer = ConfigDict(dict(name="words", most=4_000))
        config.conditioning.text.length = 24
    if condition == "canvas":
        config.conditioning.text.length = 1  # the token that begins every text
    return config


def _large(config: ConfigDict) -> ConfigDict:
    config.data.image_size = 64
    config.data.options.update(size=64, least_length=3, most_length=8, place="anywhere", num_examples=100_000)
    config.conditioning.text.update(canvas=64, length=80)
    config.conditioning.text.encoder.update(width=256, depth=4, num_heads=8)
    config.model.update(base_channels=96, channel_multipliers=(1, 2, 3, 4), attention_resolutions=(16, 8))
    config.model.num_res_blocks = 2
    config.train.update(steps=100_000, batch_size=128)
    config.optimizer.update(learning_rate=2e-4, warmup_steps=1_000)
    config.ema.half_lives = (500_000,)
    config.sampling.steps = 25
    config.log.update(validate_every=5_000, sample_every=5_000)
    config.checkpoint.every = 5_000
    config.evaluation.num_samples = 500
    return config
