"""Detectors of any maker as ONNX files: reading them, and what is in them.

``file`` reads a file safely, ``graph`` is its data flow, ``taps`` finds the maps a branch can read, ``layouts``
understands the outputs, ``pictures`` how images must be given, ``recognise`` puts the four together.
"""
