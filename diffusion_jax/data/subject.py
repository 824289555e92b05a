"""A subject and its class, the data of DreamBooth (Ruiz et al. 2022, arXiv:2208.12242).

A few pictures of one subject share a caption with a rare word, "a photo of a sks dog". Pictures of its class, with the
caption "a photo of a dog", keep the model from forgetting the class; in a batch the two alternate. The pictures of the
class are in a folder that the user names, or were drawn from the model before training.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated

from diffusion_jax.data.folder import FolderSource, open_folder
from diffusion_jax.data.sources import Dataset, DatasetInfo, Example, datasets, describers
from diffusion_jax.domains import NOT_NEGATIVE
from diffusion_jax.errors import UserError
from diffusion_jax.specs import DataSpec


@dataclasses.dataclass(frozen=True)
class SubjectSource:
    """Pictures of the subject, followed by those of its class, each with its caption."""

    folders: tuple[FolderSource, ...]
    captions: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> Example:
        which, within = self._place(index)
        return {"image": self.folders[which][within]["image"], "text": self.captions[which]}

    def texts(self, indices: Sequence[int]) -> list[str]:
        return [self.captions[self._place(int(index))[0]] for index in indices]

    def _place(self, index: int) -> tuple[int, int]:
        first = self.counts[0]
        return (0, index) if index < first else (1, index - first)


@datasets.register("subject")
def open_subject(
    *,
    split: str = "train",
    data_dir: str | None = None,
    instance: str = "",
    instance_prompt: str = "",
    class_pictures: str = "",
    class_prompt: str = "",
    num_class_images: Annotated[int, NOT_NEGATIVE] = 0,
    channels: int = 3,
) -> Dataset:
    """Open the pictures of a subject and those of its class.

    Args:
      split: "train"; there is no other.
      data_dir: not used.
      instance: folder with pictures of the subject.
      instance_prompt: their caption.
      class_pictures: folder with pictures of its class.
      class_prompt: their caption.
      num_class_images: number of pictures of the class to use, the first ones by name; 0: none.
      channels: 3 (RGB) or 1 (grey).

    Raises:
      UserError: the split is another, a caption is missing, a folder has no pictures or those of several subjects, or
        there are too few pictures of the class.
    """
    if split != "train":
        raise UserError(f"data.instance has only the split 'train', not {split!r}: a subject has no held-out pictures")
    if not instance_prompt.strip():
        raise UserError(
            'data.instance_prompt is empty: give the caption of the subject, such as "a photo of a sks dog"'
        )
    own = _opened("data.instance", instance, channels)
    if own.info.num_classes > 1:
        raise UserError(
            f"data.instance={instance} holds {own.info.num_classes} folders "
            f"({', '.join(own.info.class_names[:3])} ...): name the folder of the subject"
        )
    remarks = [f"{_pictures(own.info.num_examples)} of the subject: {instance_prompt!r}"]
    if own.info.num_examples == 1:
        remarks.append("one picture teaches little beyond itself: three to five are usual")
    if own.source.captions:
        remarks.append(f"the captions in {instance} are not read: all pictures have the caption data.instance_prompt")
    folders, captions, counts = [own.source], [instance_prompt], [own.info.num_examples]
    fingerprints = [own.info.fingerprint]
    if num_class_images:
        prior = _class(class_pictures, class_prompt, num_class_images, channels)
        folders, captions = [*folders, prior.source], [*captions, class_prompt]
        counts = [*counts, num_class_images]
        fingerprints.append(f"{num_class_images} of {prior.info.fingerprint}")
        remarks.append(f"{_pictures(num_class_images)} of its class: {class_prompt!r}")
        if prior.info.num_examples > num_class_images:
            remarks.append(f"{class_pictures} has {prior.info.num_examples:,}, of which data.num_class_images are used")
    info = dataclasses.replace(
        describe_subject(num_class_images=num_class_images, channels=channels),
        num_examples=sum(counts),
        fingerprint=hashlib.sha256("\0".join([*fingerprints, *captions]).encode()).hexdigest(),
    )
    source = SubjectSource(tuple(folders), tuple(captions), tuple(counts))
    return Dataset(info=info, source=source, remarks=tuple(remarks))


def describe_subject(*, num_class_images: int = 0, channels: int = 3, **others: object) -> DatasetInfo:
    """The description of a subject without its pictures; `others` are the other arguments of its opener."""
    return DatasetInfo(
        name="subject",
        split="train",
        num_examples=0,
        spec=DataSpec(kind="pixels", shape=(None, None, channels)),
        fields=("text",),
        num_prior=num_class_images,
    )


describers["subject"] = describe_subject


def _class(folder: str, prompt: str, count: int, channels: int) -> Dataset:
    """The pictures of the class.

    Raises:
      UserError: there is no caption, no such folder, or too few pictures in it.
    """
    if not prompt.strip():
        raise UserError('data.class_prompt is empty: it is the caption of the class, such as "a photo of a dog"')
    mend = "add pictures, set data.num_class_images to fewer (0: no prior preservation), or leave data.class_pictures "
    mend += "empty and they are drawn from the model"
    if not folder:
        raise UserError(f"data.num_class_images={count}, but there are no pictures of the class: {mend}")
    try:
        opened = _opened("data.class_pictures", folder, channels)
    except UserError as error:
        raise UserError(f"{error}; {mend}") from error
    if opened.info.num_examples < count:
        raise UserError(
            f"data.class_pictures={folder} has {_pictures(opened.info.num_examples)}, but data.num_class_images is "
            f"{count}: {mend}"
        )
    return opened


def _opened(field: str, folder: str, channels: int) -> Dataset:
    if not folder:
        raise UserError(f"{field} is empty: name a folder of pictures")
    try:
        return open_folder(path=folder, split="all", channels=channels)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"
