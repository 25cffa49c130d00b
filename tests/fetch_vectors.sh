#!/bin/sh
# Fetch the vocabularies, token vectors and chat templates that tests/text/test_vectors.py checks against: they come with
# the source package of llama-cpp-python (77 MB), which is downloaded and not built. Without them those tests skip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-"$here/../.venv/bin/python"}
if [ -f "$here/.data/llama_cpp_python-0.3.36.tar.gz" ]; then exit 0; fi
mkdir -p "$here/.data"
exec "$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary llama-cpp-python \
  --dest "$here/.data" llama-cpp-python==0.3.36
