"""What a trained model is asked to do besides drawing samples: requests to data, as pure functions.

inpaint         draw what a mask covers
edit            make something else of a picture: invert as what it is, sample as what it shall be
variation       draw a picture again, from the middle
instruct        do with a picture what an instruction says, by a network that was trained to
invert          the noise that gives a picture
from_latents    the picture that given noise gives
"""

from diffusion_jax.tasks.edit import Edit, Instruct, Variation
from diffusion_jax.tasks.frame import TASKS, Request, Setting, Task, name_of, require_tellable
from diffusion_jax.tasks.generate import generate
from diffusion_jax.tasks.inpaint import Inpaint
from diffusion_jax.tasks.invert import FromLatents, Invert

__all__ = [
    "TASKS",
    "Edit",
    "FromLatents",
    "Inpaint",
    "Instruct",
    "Invert",
    "Request",
    "Setting",
    "Task",
    "Variation",
    "generate",
    "name_of",
    "require_tellable",
]
