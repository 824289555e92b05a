"""From a config or a workdir to the objects that it names."""
