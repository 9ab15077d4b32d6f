"""The version of the package. The build reads it from this file; everything else imports it."""

__version__ = "0.1.0"
