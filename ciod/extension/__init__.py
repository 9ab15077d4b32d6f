"""A detector that exists learns the classes of a folder: ``ciod extend MODEL data=FOLDER out=DIR``.

``run`` is the page to read first; ``settings`` says what can be chosen, ``names`` which class is which, ``effort`` how
long to train, ``retention`` what became of the old classes, ``tradeoff`` what lies between the old model and the new.
"""
