"""The tasks of a trained model besides drawing samples: pure functions from requests to data.

inpaint         draw the part under a mask
edit            turn a picture into another: invert it with what it is, sample with what it shall be
variation       draw a picture again, starting from the middle
instruct        change a picture by an instruction, with a network trained for it
invert          find the noise that gives a picture
from_latents    draw the picture that given noise gives

`sample` draws samples in one call; `draw` is the pure function that draws one batch.
"""

from diffusion_jax.tasks.drawing import draw, sample
from diffusion_jax.tasks.edit import Edit, Instruct, Variation
from diffusion_jax.tasks.frame import TASKS, Request, Setting, Task, name_of, require_tellable
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
    "draw",
    "name_of",
    "require_tellable",
    "sample",
]
