"""What runs inside a job's container: the program that is its first process, and its reporter inside pytest.

Neither is imported by the controller but as text (`ci_controller.feed`).
"""
