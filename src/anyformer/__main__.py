"""`python -m anyformer` is the command `anyformer`: what torchrun starts."""

from anyformer.cli import main

if __name__ == "__main__":
    main()
