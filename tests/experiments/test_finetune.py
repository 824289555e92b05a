"""The fine-tuning configs of published models train tiny folders of the same kind for some steps."""

import json
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

from diffusion_jax.data import crops
from diffusion_jax.errors import UserError
from diffusion_jax.schedulers import SCHEDULES, TIME_SAMPLERS
from experiments.building.kinds import open_experiment, plan_experiment
from experiments.ground.config_files import load_config

GOLDEN = Path(__file__).parents[1] / "golden" / "pipelines"
HEIGHT, WIDTH, SIDE = 48, 80, 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of captioned pictures, none of which is square."""
    folder, draw = tmp_path_factory.mktemp("pictures") / "train", np.random.default_rng(0)
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": ("a red fox", "a blue cat")[i % 2]} for i in range(8)]
    for row in rows:
        PIL.Image.fromarray(draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def config_of(name, pictures):
    config = load_config(f"configs/finetune/{name}.py")
    config.init.folder = str(GOLDEN / name)
    config.data.update(dataset=f"folder:{pictures}", image_size=SIDE, num_workers=0)
    config.train.update(dtype="float32", batch_size=4, steps=2)
    config.optimizer.warmup_steps = 0
    config.parallel.update(data=-1, fsdp=1)
    return config


@pytest.mark.parametrize(
    "name", ["flux", pytest.param("sd3", marks=pytest.mark.slow), pytest.param("sdxl", marks=pytest.mark.slow)]
)
def test_a_tiny_folder_takes_steps(name, pictures):
    experiment = open_experiment(config_of(name, pictures), devices=(jax.devices()[0],))
    experiment.check()
    assert experiment.network.remat == "full"
    state = experiment.first_state()
    before = jax.device_get(state.params["network"])
    frozen, _ = experiment.read_frozen()
    batch = next(experiment.pipeline.batches())
    assert set(batch) == set(experiment.abstract_batch(4))
    step = jax.jit(experiment.layout.placed(experiment.train_step()))
    state = state.replace(frozen=frozen)
    for _ in range(2):
        state, metrics = step(state, experiment.layout.place_batch(batch))
        assert np.isfinite(metrics["loss"])
    after = jax.device_get(state.params["network"])
    still = jax.tree_util.tree_map_with_path(lambda path, a, b: (path[-1].key, np.array_equal(a, b)), before, after)
    unmoved = {name for name, same in jax.tree.leaves(still, is_leaf=lambda x: isinstance(x, tuple)) if same}
    assert unmoved <= {"frozen_position_embedding"}


def test_sdxl_is_told_how_a_picture_was_cut(pictures):
    experiment = open_experiment(config_of("sdxl", pictures), devices=(jax.devices()[0],))
    batch = next(experiment.pipeline.batches())
    # 48 x 80 becomes 32 x 53, of which ten columns are cropped on the left
    np.testing.assert_array_equal(batch["sizes"], [[HEIGHT, WIDTH, 0, 10, SIDE, SIDE]] * 4)
    told = experiment.model.conditioning.parts[1]({}, batch, 4)["sizes"]
    np.testing.assert_array_equal(told, batch["sizes"])


@pytest.mark.parametrize("name", list(crops))
def test_a_crop_says_where_it_begins(name):
    """The corner pixel of a crop has the value of the source pixel at `start`."""
    height, width, size = (20, 32, 32) if name == "pad" else (32, 32, 32) if name == "none" else (64, 96, 32)
    crop = crops.build(name, size=size)
    top, left = crop.start(height, width)
    assert (top, left) == ((0, 8) if name in ("adm", "edm") else (0, 0))
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None] * 2, (height, width, 3))
    corner = int(crop(np.ascontiguousarray(ramp))[size // 2, 0, 0])
    scale = height / size if name in ("adm", "edm") else 1.0
    assert abs(corner - 2 * left * scale) <= 3


def test_the_shift_of_times_is_that_of_the_grid():
    schedule, u = SCHEDULES.build("rectified_flow"), np.array([0.1, 0.5, 0.9], np.float32)
    plain = TIME_SAMPLERS.build("logit_normal").quantile(u, schedule)
    shifted = TIME_SAMPLERS.build({"name": "logit_normal", "shift": 3.0}).quantile(u, schedule)
    np.testing.assert_allclose(shifted, 3.0 * plain / (1.0 + 2.0 * plain), rtol=1e-6)
    with pytest.raises(UserError, match="shift must be a number above 0"):
        TIME_SAMPLERS.build({"name": "logit_normal", "shift": 0.0})


def test_flux_is_told_the_guidance_of_the_config(pictures):
    config = config_of("flux", pictures)
    experiment = plan_experiment(config)
    part = next(part for part in experiment.conditioning.parts if "guidance" in part.gives)
    np.testing.assert_array_equal(part({}, {}, 2)["guidance"], [1.0, 1.0])
    assert experiment.model.data.shape == (SIDE, SIDE, 3)
    config.train.guidance_embedding = None
    part = next(part for part in plan_experiment(config).conditioning.parts if "guidance" in part.gives)
    assert part.scale == 3.5


@pytest.mark.slow  # traces a network of full size
def test_a_model_that_is_not_there_is_planned_by_its_published_size(tmp_path):
    config = load_config("configs/finetune/sd15.py")
    config.init.folder, config.data.dataset = str(tmp_path / "models"), f"folder:{tmp_path / 'none'}"
    experiment = plan_experiment(config)
    state = experiment.abstract_state
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params["network"])) == 859_520_964
    assert set(state.frozen) == {"codec", "conditioning/context"}
    first, second = experiment.assumed
    assert first.endswith("models is not there: the sizes are those of init.published, sd15")
    assert second.endswith("captioned pictures of 512x512 pixels stand in its place")
    with pytest.raises(UserError, match="there is no model in"):
        open_experiment(config)
    config.init.published = ""
    with pytest.raises(UserError, match="there is no model in"):
        plan_experiment(config)
    config.init.published = "sd16"
    with pytest.raises(UserError, match="unknown published model 'sd16'; did you mean 'sd15'"):
        plan_experiment(config)


def test_what_the_network_has_not_is_refused(pictures):
    config = config_of("sdxl", pictures)
    config.train.guidance_embedding = 3.5
    with pytest.raises(UserError, match=r"train\.guidance_embedding: this network embeds no guidance scale"):
        open_experiment(config, devices=(jax.devices()[0],)).check()
