"""The embedded MobileNet and its samples."""
