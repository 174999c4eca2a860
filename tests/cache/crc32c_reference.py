"""CRC-32C (Castagnoli), bit by bit from its definition: 0x1EDC6F41, reflected, all ones before and after."""

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, reflected


def _entry(value):
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_entry(value) for value in range(256)]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283  # the check value of the standard
