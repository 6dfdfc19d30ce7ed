/* Poly1305 (RFC 8439, 2.5): a polynomial over the bytes modulo 2^130 - 5, at a point that nobody knew before; plus a second secret.
 *
 * Bytes that were changed by who did not know the key have the same tag with a probability below 8 * ceil(size / 16) / 2^106
 * (D. J. Bernstein, The Poly1305-AES message-authentication code, theorem 3.3): 2^-82 for 20 MB.
 */
#include <stdint.h>

#define KEY 32
#define TAG 16

void poly1305(const uint8_t *data, uint32_t size, const uint8_t key[KEY], uint8_t tag[TAG]);
