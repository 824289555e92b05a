"""Pictures in Parquet files, and in folders that `save_to_disk` of Hugging Face's `datasets` wrote; needs pyarrow.

A column has the encoded pictures: bytes, or a struct with the field "bytes", as `datasets` writes them. Others may have
classes, numbers or names, and captions. What the files say of the columns' features, they are read with: the names of
the classes. `datasets` itself is not needed.

Files of Arrow are mapped into memory, and read where a picture lies. Parquet is compressed in groups of rows; up to 512
MiB are read whole, and what is larger is unpacked once, into the folder of prepared data.
"""

import bisect
import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int

from diffusion_jax.data import packed
from diffusion_jax.data.sources import Dataset, datasets
from diffusion_jax.domains import Bounds
from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, read_json, whole_directory

USUAL = {
    "image": ("image", "img", "jpg", "png", "picture"),
    "label": ("label", "labels", "class", "cls", "fine_label"),
    "caption": ("text", "caption", "prompt"),
}
"""The names by which columns are found that no option names."""
NONE = "none"
_HELD = 2**29  # bytes of the columns that are read, up to which Parquet is held in memory


@dataclasses.dataclass(frozen=True)
class ArrowRows:
    """Rows of tables.

    Attributes:
      root: the folder.
      files: below it.
      kind: "parquet", or "stream" for the files of `datasets`.
      columns: the names of those with pictures, classes and captions, by "image", "label" and "caption"; "" for none.
      class_names: the names of the classes, where the files say them.
      unpacked: where a large Parquet data set is unpacked; "" where it is not.
    """

    root: str
    files: tuple[str, ...]
    kind: Literal["parquet", "stream"]
    columns: Mapping[str, str]
    class_names: tuple[str, ...] = ()
    unpacked: str = ""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}

    @functools.cached_property
    def _table(self) -> Any:
        arrow = _pyarrow()
        wanted = [name for name in self.columns.values() if name]
        with _one_line_of(self.root):
            if self.unpacked:
                return arrow.ipc.open_file(arrow.memory_map(f"{self.unpacked}/rows.arrow")).read_all()
            tables = [table.select(wanted) for table in map(self._read, self.files)]
            return arrow.concat_tables(tables, promote_options="permissive")

    def _read(self, file: str) -> Any:
        arrow, path = _pyarrow(), f"{self.root}/{file}"
        if self.kind == "parquet":
            return _parquet().read_table(path, columns=[name for name in self.columns.values() if name])
        return arrow.ipc.open_stream(arrow.memory_map(path)).read_all()

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first row of every chunk of the column of pictures."""
        lengths = [len(chunk) for chunk in self._table[self.columns["image"]].chunks]
        return np.cumsum([0, *lengths[:-1]]).tolist() if lengths else []

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """Such as "a.parquet, row 3"; of files that have all rows in them."""
        counts = [self._count(file) for file in self.files]
        return [f"{file}, row {row}" for file, count in zip(self.files, counts, strict=True) for row in range(count)]

    def _count(self, file: str) -> int:
        with _one_line_of(file):
            if self.kind == "parquet":
                return _parquet().read_metadata(f"{self.root}/{file}").num_rows
            return self._read(file).num_rows

    @functools.cached_property
    def classes(self) -> Sequence[str] | Int[np.ndarray, " rows"] | None:
        """The column of classes."""
        name = self.columns["label"]
        if not name:
            return None
        column = self._table[name]
        if column.null_count:
            raise UserError(
                f"{self.root}: {column.null_count} rows have no {name}: give all rows one, or set "
                "data.options.label_column=none"
            )
        if _pyarrow().types.is_integer(column.type):
            return column.to_numpy().astype(np.int64)
        return column.to_pylist()

    @property
    def has_texts(self) -> bool:
        return bool(self.columns["caption"])

    def picture(self, row: int) -> bytes:
        chunk = bisect.bisect_right(self._starts, row) - 1
        column = self._table[self.columns["image"]].chunk(chunk)
        value = column[row - self._starts[chunk]].as_py()
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if content is None:
            where = value.get("path") if isinstance(value, Mapping) else None
            held = f"names {where} and does not hold the picture" if where else "has no picture"
            raise UserError(f"{self.root}/{self.names[row]} {held}: write the data set with its pictures in it")
        return content

    def texts(self, rows: Sequence[int]) -> list[str]:
        name = self.columns["caption"]
        found = self._table[name].take(_pyarrow().array(list(rows), "int64")).to_pylist()
        for row, text in zip(rows, found, strict=True):
            if not (isinstance(text, str) and text.strip()):
                raise UserError(
                    f"{self.root}/{self.names[row]}: its {name} is {text!r}: write a caption, or drop the row"
                )
        return found


@datasets.register("parquet")
def open_parquet(
    *,
    path: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    channels: int = 3,
    held_out: Annotated[float, Bounds(low=0.0, high=0.9)] = 0.0,
    image_column: str = "",
    label_column: str = "",
    caption_column: str = "",
) -> Dataset:
    """Open pictures in Parquet files, such as a data set that was downloaded from Hugging Face.

    Args:
      path: a folder with files *.parquet, in it or below it, or one such file.
      split: "train", another one that names of files or folders say, or "all".
      data_dir: where a large data set is unpacked.
      channels: 3 (RGB) or 1 (grey).
      held_out: share of the pictures of every class that are in the split "held_out" and in no other.
      image_column: with the pictures; empty: the first of the usual names, image, img, jpg, png, picture.
      label_column: with the classes; empty: label, labels, class, cls or fine_label, if there is one; "none" for none.
      caption_column: with the captions; empty: text, caption or prompt, if there is one; "none" for none.

    Raises:
      UserError: no pyarrow, no such folder, split or column, or a file that is damaged.
    """
    root, files = packed.find_files("parquet", path, ".parquet")
    with _one_line_of(root / files[0]):
        schema = _parquet().read_schema(root / files[0])
    said = (schema.metadata or {}).get(b"huggingface")
    features = _features(said)
    columns = _columns(root, schema, image_column, label_column, caption_column)

    def rows_of(names: list[str]) -> ArrowRows:
        rows = ArrowRows(str(root), tuple(names), "parquet", columns, _class_names(features, columns["label"]))
        return _unpacked(rows, data_dir)

    splits = packed.split_files(root, files)
    return packed.opened("parquet", root, splits, rows_of, split=split, channels=channels, held_out=held_out)


@datasets.register("arrow")
def open_arrow(
    *,
    path: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    channels: int = 3,
    held_out: Annotated[float, Bounds(low=0.0, high=0.9)] = 0.0,
    image_column: str = "",
    label_column: str = "",
    caption_column: str = "",
) -> Dataset:
    """Open a folder that `save_to_disk` of Hugging Face's `datasets` wrote.

    Args:
      path: the folder, of a data set or of one with splits.
      split: one of its splits; of a data set without splits "train" or "all".
      data_dir: not used.
      channels: 3 (RGB) or 1 (grey).
      held_out: share of the pictures of every class that are in the split "held_out" and in no other.
      image_column: with the pictures; empty: the first of the usual names, image, img, jpg, png, picture.
      label_column: with the classes; empty: label, labels, class, cls or fine_label, if there is one; "none" for none.
      caption_column: with the captions; empty: text, caption or prompt, if there is one; "none" for none.

    Raises:
      UserError: no pyarrow, no such folder, split or column, or a file that is damaged.
    """
    if not path or not isinstance(path, str):
        raise UserError("dataset 'arrow' needs a path: dataset='arrow:/path/to/folder'")
    root = expanded(path)
    listed = root / "dataset_dict.json"
    named = read_json(listed).get("splits") if listed.is_file() else None
    folders = {name: f"{name}/" for name in named} if isinstance(named, list) else {"train": ""}
    splits = {name: [f"{folder}{file}" for file in _data_files(root / folder)] for name, folder in folders.items()}
    some = next(iter(folders.values()))
    features = read_json(root / some / "dataset_info.json").get("features") or {}
    first = next((file for files in splits.values() for file in files), None)
    if first is None:
        raise UserError(f"arrow: {root} has no rows")
    with _one_line_of(root / first):
        schema = _pyarrow().ipc.open_stream(_pyarrow().memory_map(str(root / first))).schema
    columns = _columns(root, schema, image_column, label_column, caption_column)

    def rows_of(names: list[str]) -> ArrowRows:
        return ArrowRows(str(root), tuple(names), "stream", columns, _class_names(features, columns["label"]))

    return packed.opened("arrow", root, splits, rows_of, split=split, channels=channels, held_out=held_out)


def _data_files(folder: Path) -> list[str]:
    """The files of a split, in the order of its rows."""
    if not (folder / "state.json").is_file():
        raise UserError(
            f"arrow: {folder} has no state.json: give a folder that save_to_disk of datasets wrote; for files "
            "*.parquet use the data set parquet:PATH"
        )
    found = read_json(folder / "state.json").get("_data_files")
    names = [one.get("filename") for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{folder / 'state.json'} names no files: write the data set again")
    return names


def _columns(root: Path, schema: Any, image: str, label: str, caption: str) -> dict[str, str]:
    """The column for each use: the one that an option names, else the first that is usual and of a type that fits."""
    types = _pyarrow().types
    texts = (types.is_string, types.is_large_string)
    fits = {
        "image": lambda t: types.is_binary(t) or types.is_large_binary(t) or types.is_struct(t),
        "label": lambda t: types.is_integer(t) or any(check(t) for check in texts),
        "caption": lambda t: any(check(t) for check in texts),
    }
    found = {}
    for use, given in (("image", image), ("label", label), ("caption", caption)):
        if given and given != NONE:
            if given not in schema.names:
                raise UserError(f"data.options.{use}_column={given}: {root} has the columns {', '.join(schema.names)}")
            if not fits[use](schema.field(given).type):
                raise UserError(
                    f"data.options.{use}_column={given} is of type {schema.field(given).type}: name another"
                )
        usual = [name for name in USUAL[use] if name in schema.names and fits[use](schema.field(name).type)]
        found[use] = "" if given == NONE else given or next(iter(usual), "")
    if not found["image"]:
        raise UserError(
            f"{root} has no column of pictures among {', '.join(schema.names)}: name it with data.options.image_column"
        )
    return found


def _features(said: bytes | None) -> Mapping[str, Any]:
    """What `datasets` noted of the columns in the schema of a Parquet file; {} where it noted nothing."""
    try:
        features = json.loads(said)["info"]["features"] if said else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, Mapping) else {}


def _class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    feature = features.get(column)
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _unpacked(rows: ArrowRows, data_dir: str | None) -> ArrowRows:
    """The rows as they are, or where they are many, in a file that is mapped into memory; made once."""
    arrow, parquet, size = _pyarrow(), _parquet(), 0
    wanted = [name for name in rows.columns.values() if name]
    for file in rows.files:
        with _one_line_of(f"{rows.root}/{file}"):
            about = parquet.read_metadata(f"{rows.root}/{file}")
        size += sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if size <= _HELD:
        return rows
    known = packed.files_digest(Path(rows.root), rows.files) + "-" + "-".join(wanted)
    target = Path(data_dir or "data") / "unpacked" / known.replace("/", "_")
    if not (target / "rows.arrow").is_file():
        with whole_directory(target) as folder, _one_line_of(rows.root):
            schema = parquet.read_schema(f"{rows.root}/{rows.files[0]}")
            schema = arrow.schema([schema.field(name) for name in wanted])
            with arrow.OSFile(str(folder / "rows.arrow"), "wb") as sink, arrow.ipc.new_file(sink, schema) as writer:
                for file in rows.files:
                    with parquet.ParquetFile(f"{rows.root}/{file}") as opened:
                        for batch in opened.iter_batches(batch_size=256, columns=wanted):
                            writer.write_batch(batch.cast(schema))
    return dataclasses.replace(rows, unpacked=str(target))


@contextlib.contextmanager
def _one_line_of(path: object) -> Iterator[None]:
    """A block that reads a file by pyarrow, whose errors become one line."""
    try:
        yield
    except (_pyarrow().ArrowException, FileNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path}: {said}; repair or remove the file") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UserError(
            "Parquet and Arrow are read by pyarrow, which is not installed: `pip install '.[arrow]'`"
        ) from error
    return pyarrow


def _parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet
