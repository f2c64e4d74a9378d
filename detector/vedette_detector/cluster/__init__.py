"""What the detector knows from Kubernetes: who sends (TokenReview), and which pod a process belongs to (watches).

`api` is the only module that touches the Kubernetes client; everything here works on plain JSON.
"""
