"""Simulated providers and sample services, as one HTTP service of its own.

The simulated Twilio and Telnyx sign and speak by themselves: they never import
`chalicelib.providers`, else one bug on both sides would pass.
"""
