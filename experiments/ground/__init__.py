"""The base of every command: flags and config files, the workdir, and the output of numbers and progress."""
