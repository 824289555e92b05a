"""What every command stands on: flags and config files, the workdir, and where numbers and progress are written."""
