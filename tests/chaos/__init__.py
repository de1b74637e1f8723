"""A fleet to which things happen, under load: `python -m tests.chaos --seconds 300` says what it saw.

Every two seconds a rank, a neuron or a gunicorn process is killed, a process is stopped for a while, a
connection is cut and healed, or memory, a disk or its speed is taken away. Meanwhile clients of all kinds ask
for simulated models, whose answers are known to the letter, and hold each answer against them.
"""
