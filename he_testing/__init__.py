"""What tests of a HushSum deployment need: parties, a committee in memory, stand-ins for what is slow or elsewhere.

And `lab`, the program behind `he-server lab`.
"""
