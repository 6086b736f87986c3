/* The content of images: controllers keep none of it, they pass requests on to a host that does. */
#ifndef CONTROLLER_API_API_IMAGE_H
#define CONTROLLER_API_API_IMAGE_H

#include "controller/api/api_call.h"

void api_image_content(struct api_call *call);
void api_image_upload(struct api_call *call); /* GET, HEAD and PATCH */

#endif
