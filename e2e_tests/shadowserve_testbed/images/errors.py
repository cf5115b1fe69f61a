"""What can go wrong while images are made."""


class ImageError(Exception):
    """An image cannot be made; the message says what to do."""
