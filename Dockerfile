# sloguard beside vLLM, for machines with NVIDIA GPUs. Nothing of vLLM is changed: sloguard is one more package in its image.
#   docker build -t sloguard .
#   docker run --gpus all --user "$(id -u):$(id -g)" -e HOME=/work -v "$PWD:/work" sloguard tune --model Qwen/Qwen2-1.5B --slo-ttft 500 --slo-tpot 50 --out /work/study
ARG VLLM_VERSION=0.32.0
FROM vllm/vllm-openai:v${VLLM_VERSION}

COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN python3 -m pip install --no-cache-dir /src && rm -rf /src

# vLLM's kernels and sloguard's own state are cached beneath HOME; mount it to keep them between containers.
RUN useradd --create-home --uid 1000 sloguard
USER 1000:1000
# For whoever is given with --user and has no name in the image: PyTorch asks for one.
ENV USER=sloguard
WORKDIR /work
ENTRYPOINT ["sloguard"]
CMD ["--help"]
