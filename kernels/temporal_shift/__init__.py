"""Temporal shift: channels of one frame that come from its neighbours."""
