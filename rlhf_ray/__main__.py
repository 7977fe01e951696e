"""`python -m rlhf_ray` is the `rlhf-ray` command."""

from rlhf_ray.cli import main

if __name__ == "__main__":
    main()
