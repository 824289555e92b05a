"""Read all examples of a split as arrays."""

from diffusion_jax import data


def digits(split, data_dir):
    """Images (uint8) and labels of the digits prepared in `data_dir`."""
    return data.Pipeline(dataset="digits", split=split, data_dir=str(data_dir), batch_size=1).arrays()
