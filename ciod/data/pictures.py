"""The former name of ``image_cache``, for scripts that import it."""

from ciod.data.image_cache import Pictures

__all__ = ["Pictures"]
