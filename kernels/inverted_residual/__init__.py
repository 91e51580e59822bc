"""MobileNetV2's inverted residual in int8: expansion, depthwise, projection, as one kernel."""
