"""Small networks of the architectures that users bring, exported when the tests run, and what is measured of them."""
