"""The demo: real attack behaviours on this machine, and what Vedette says about each."""
