# `msdeform serve` on a CPU, with the versions of constraints.txt. See docs/serving.md.
#   docker build -t msdeform-serve .
#   docker run -p 8000:8000 -v "$PWD/runs/mine:/model:ro" msdeform-serve

FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints.txt /wheels/
# PyTorch's own index has it without CUDA's libraries, which are gigabytes
RUN pip install --no-cache-dir -c /wheels/constraints.txt --index-url https://download.pytorch.org/whl/cpu \
    torch torchvision
# what serving a detector imports; msdeform[train] would bring what training needs, and compilers for GPUs
RUN pip install --no-cache-dir -c /wheels/constraints.txt \
    fastapi huggingface-hub llvmlite numpy pillow prometheus-client python-multipart pyyaml safetensors scipy uvicorn
COPY --from=build /wheels/*.whl /wheels/
RUN pip install --no-cache-dir --no-deps /wheels/*.whl

# a home, in which compiled kernels are kept
RUN useradd --create-home --uid 10001 msdeform
USER msdeform
WORKDIR /srv
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["msdeform", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
