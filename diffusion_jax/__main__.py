"""`python -m diffusion_jax train ...` is `diffusion-jax train ...`."""

import sys

from diffusion_jax.console import main

if __name__ == "__main__":
    sys.exit(main())
