"""Faster R-CNN: a first stage proposes regions, a second one classifies them."""
