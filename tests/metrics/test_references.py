"""Files with reference statistics, in every published format."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.metrics import METRICS, ImageSet, PixelFeatures, gaussian, read_gaussian


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (50, 2, 3, 1)).astype(np.uint8)


def moments(images):
    return gaussian(PixelFeatures()(images).pooled)


@pytest.mark.parametrize("form", ["mu", "ref_mu", "pool_3", "arr_0", "spatial"])
def test_every_form_gives_the_same_gaussian(form, images, tmp_path):
    path, (mean, covariance) = tmp_path / "reference.npz", moments(images)
    contents = {
        "mu": {"mu": mean, "sigma": covariance},
        "ref_mu": {"ref_mu": mean, "ref_sigma": covariance},
        "pool_3": {"pool_3": PixelFeatures()(images).pooled},
        "arr_0": {"arr_0": images},
    }
    if form == "spatial":
        np.savez(path, mu=mean, sigma=covariance, mu_s=mean[:2], sigma_s=covariance[:2, :2])
        np.testing.assert_array_equal(read_gaussian(path, PixelFeatures(), part="spatial")[0], mean[:2])
    else:
        np.savez(path, **contents[form])
    found = read_gaussian(path, PixelFeatures())
    np.testing.assert_allclose(found[0], mean, rtol=1e-12)
    np.testing.assert_allclose(found[1], covariance, rtol=1e-12, atol=1e-12)


def test_fid_takes_a_file_in_the_place_of_the_training_images(images, tmp_path):
    path = tmp_path / "reference.npz"
    mean, covariance = moments(images)
    np.savez(path, mu=mean, sigma=covariance)
    sets = {"train": ImageSet(images=images), "test": ImageSet(images=images[:20])}
    samples = ImageSet(images=images[::-1] // 2)
    by_file = METRICS.build({"name": "fid", "reference": str(path)}, space=PixelFeatures())
    by_images = METRICS.build("fid", space=PixelFeatures())
    assert by_file(samples, **sets)["fid"] == pytest.approx(by_images(samples, **sets)["fid"], rel=1e-9)


def test_bad_files_are_refused(tmp_path):
    space, path = PixelFeatures(), tmp_path / "reference.npz"
    with pytest.raises(UserError, match="there is no file"):
        read_gaussian(path, space)
    path.write_bytes(b"PK and nothing more")
    with pytest.raises(UserError, match=r"not an \.npz file"):
        read_gaussian(path, space)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(UserError, match="holds something"):
        read_gaussian(path, space)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match=r"mean \[3\] and a covariance \[4, 4\]"):
        read_gaussian(path, space)
    np.savez(path, mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(UserError, match="not finite"):
        read_gaussian(path, space)
    np.savez(path, mu=np.array([None, object()]), sigma=np.eye(2))  # it contains a pickle, which is not read
    with pytest.raises(UserError, match=r"not an \.npz file"):
        read_gaussian(path, space)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.array("a"), "sigma": np.array("b")},
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"mu": np.zeros(2, complex), "sigma": np.eye(2)},
        {"pool_3": np.float32(1.0)},
        {"pool_3": np.zeros((1, 3), np.float32)},
        {"arr_0": np.zeros((0, 2, 2, 3), np.uint8)},
    ],
)
def test_arrays_of_another_kind_are_named(arrays, tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"reference\.npz"):
        read_gaussian(path, PixelFeatures())


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "lfs.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "circle.npz").symlink_to(tmp_path / "circle.npz")
    for name, message in (("folder", "is a folder"), ("lfs", "Git LFS"), ("circle", "cannot read")):
        with pytest.raises(UserError, match=rf"{name}\.npz.*{message}"):
            read_gaussian(tmp_path / f"{name}.npz", PixelFeatures())
