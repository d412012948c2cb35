# reloc serve in a container: docker build -t reloc .
#     docker run -p 8000:8000 -v "$PWD/maps/kitchen:/map:ro" reloc camera.from_map=true
# Its steps are run by tests/packaging/test_dockerfile.py without Docker; the image itself is not built there.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps -w /wheels . ./plugins/*

FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /
# CPU builds of PyTorch come from its own index.
RUN python -m pip install --no-cache-dir -c /constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu \
    --find-links /wheels 'reloc[serve,features]' reloc-landmarks && rm -rf /wheels
RUN useradd --create-home reloc
USER reloc
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["reloc", "serve", "map_dir=/map", "host=0.0.0.0", "port=8000"]
