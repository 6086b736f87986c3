/* How an image's content is uploaded, for CLI, controllers and agents alike.
 *
 *   GET or HEAD /v1/images/{id}/upload                        how far it is: Upload-Offset, Upload-Length
 *   PATCH       /v1/images/{id}/upload  Upload-Offset: n      the next bytes, from n on; 204 with the new Upload-Offset
 *
 * What was answered is on disk. A piece that does not begin where the last one ended is refused (409, with the
 * Upload-Offset that is right), so that a client which lost an answer asks and goes on. */
#ifndef SCHEMA_UPLOAD_PROTOCOL_H
#define SCHEMA_UPLOAD_PROTOCOL_H

#define UPLOAD_PIECE_BYTES_MAX (4u << 20)
#define UPLOAD_OFFSET_HEADER "Upload-Offset"
#define UPLOAD_LENGTH_HEADER "Upload-Length"
#define UPLOAD_CONTENT_TYPE "application/offset+octet-stream"

#endif
