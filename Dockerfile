# docker build -t diffusion-jax . ; docker run -v $PWD/runs:/work/runs diffusion-jax train --config=digits_unet --workdir=runs/digits
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt /src && rm -rf /src
WORKDIR /work
ENTRYPOINT ["diffusion-jax"]
CMD ["--help"]
