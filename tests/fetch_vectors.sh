#!/bin/sh
# Fetch the vocabularies, token vectors and chat templates that tests/text/test_vectors.py checks against: they come with
# the source package of llama-cpp-python (77 MB), which is downloaded and not installed. Without them those tests skip.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-"$here/../.venv/bin/python"}
mkdir -p "$here/.data"
echo '*' > "$here/.data/.gitignore"
exec "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$here/.data" llama-cpp-python==0.3.36
