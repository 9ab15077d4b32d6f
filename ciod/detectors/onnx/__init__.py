"""Detectors of any framework as ONNX files: how they are read and recognised.

``file`` reads a file safely, ``graph`` is its data flow, ``taps`` finds the maps that a branch can read, ``layouts``
recognises the outputs, ``pictures`` finds how images must be given, ``recognise`` combines all of them.
"""
