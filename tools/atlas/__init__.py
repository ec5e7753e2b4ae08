"""The atlas: what every measured attention library does with masks, written from measurements."""
