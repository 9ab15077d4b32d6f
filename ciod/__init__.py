"""Class-incremental object detection."""
