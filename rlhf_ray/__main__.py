"""`python -m rlhf_ray` is the `rlhf-ray` command."""

from rlhf_ray.cli import process

if __name__ == "__main__":
    process()
