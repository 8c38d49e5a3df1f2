"""What a finished run gives away of its training rows: membership, canaries, extraction. Trains shadows and
controls; knows no method and no task by name.
"""
