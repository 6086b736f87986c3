/* An image on its way between two agents: the runs of data, without the holes.
 *
 *   frame    u64 offset, u32 size, `size` bytes of the image at `offset`          (little-endian; size 1..IMAGE_STREAM_DATA_MAX)
 *   ...      offsets rise; what lies between two frames is zero
 *   end      u64 size of the image, u32 0
 *
 * A stream without its end is cut: the receiver has what it has up to the last frame and may ask for the rest. Nothing in
 * it is trusted: whoever receives it compares the SHA-256 of the whole. Pure; any thread. */
#ifndef COMPUTE_AGENT_IMAGE_STREAM_H
#define COMPUTE_AGENT_IMAGE_STREAM_H

#include "common/base.h"
#include "common/error.h"

#define IMAGE_STREAM_TYPE "application/vnd.drover.image-stream"
#define IMAGE_STREAM_HEAD_BYTES 12u
#define IMAGE_STREAM_DATA_MAX (256u * 1024)

/* A frame's head, or with @size 0 the end. */
void image_stream_put_head(uint8_t head[IMAGE_STREAM_HEAD_BYTES], uint64_t offset, uint32_t size);

/* Takes a stream apart, in whatever pieces it arrives. */
struct image_stream_reader {
    uint64_t size;   /* of the image */
    uint64_t offset; /* all before it has been given out */
    uint8_t head[IMAGE_STREAM_HEAD_BYTES];
    size_t head_size;
    uint32_t left; /* of the frame */
    bool ended;
    /* Both in rising order, without gaps between them. <0 ends the reading with that value. */
    int (*on_data)(const void *data, size_t size, uint64_t offset, void *arg);
    int (*on_hole)(uint64_t size, uint64_t offset, void *arg);
    void *arg;
};
/* The stream of an image of @size bytes from @from on. Callbacks and arg are the caller's to set. */
void image_stream_reader_init(struct image_stream_reader *reader, uint64_t size, uint64_t from);
/* 0; -EBADMSG with words: not such a stream; or what a callback returned. */
int image_stream_reader_feed(struct image_stream_reader *reader, const void *data, size_t size, struct error *err);

#endif
