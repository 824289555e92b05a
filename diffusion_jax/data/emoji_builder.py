"""The TFDS builder of emoji."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from diffusion_jax.data import emoji


def config_name(size: int, language: str) -> str:
    """The TFDS name for a size and a language: "32", or "32_de"."""
    return str(size) if language == "en" else f"{size}_{language.replace('-', '_')}"


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Captioned emoji in three styles, which are the classes; `package_dir` has archives that are then not fetched.

    There is a config for each size and language: "emoji/32", in English, and "emoji/64_de".
    """

    VERSION = tfds.core.Version(f"{emoji.VERSION}.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=config_name(size, language), description=f"{size}x{size}, captions: {language}.")
        for language in emoji.LANGUAGES
        for size in emoji.SIZES
    ]

    def __init__(self, *, package_dir: str | None = None, **arguments):
        self._package_dir = package_dir
        super().__init__(**arguments)

    @property
    def _chosen(self) -> tuple[int, str]:
        """Size and language."""
        size, _, language = self.builder_config.name.partition("_")
        return int(size), language.replace("_", "-") or "en"

    def _info(self) -> tfds.core.DatasetInfo:
        size, _ = self._chosen
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji of three styles (Noto, Fluent, OpenMoji) with captions made of emojibase's words.",
            license="; ".join(f"{package}: {package.licence}" for package in emoji.PACKAGES),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(emoji.STYLES)),
                    "code": tfds.features.Text(),
                    "index": tfds.features.Scalar(np.int64),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        emoji.require_renderer()  # before anything is fetched
        found = emoji.read_emoji(str(self._data_dir_root), self._chosen[1], self._package_dir)
        return {split: self._generate_examples(found, split) for split in emoji.SPLITS}

    def _generate_examples(self, found: list[emoji.Emoji], split: str) -> Iterator[tuple[int, dict]]:
        size, language = self._chosen
        for i, one in enumerate(found):
            if one.split == split:
                image = PIL.Image.fromarray(emoji.picture(one.svg, size))
                yield (
                    i,
                    {
                        "image": image,
                        "text": one.caption(language),
                        "label": list(emoji.STYLES).index(one.style),
                        "code": one.code,
                        "index": i,
                    },
                )
