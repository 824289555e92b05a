"""The runner: train, sample, evaluate, prepare data. Thin: parse, wire, loop, report."""
