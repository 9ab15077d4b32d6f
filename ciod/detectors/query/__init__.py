"""Detectors of the DETR family, whose networks are those of ``transformers`` (extra ``detr``)."""
