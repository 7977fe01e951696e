"""Ray shells around the plain classes of `rlhf_ray`, and the facades the driver holds."""
