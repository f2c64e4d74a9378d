"""Builds Vedette's images with whatever is there: docker, podman or buildah. See docs/development/images.md.

`build` is what ``make images`` runs, `base` makes a base image where no registry is within reach, `engine` knows the
three programs' command lines, `archive` reads what was built. `root` and `tidy` run inside the build.
"""
