/* A backend for Triton that runs ONNX files with ONNX Runtime, as NVIDIA's own does.
 *
 * Theirs is not to be had without its container, and a comparison through Triton's Python backend
 * would charge Triton for Python. This one does no more than has to be done: the inputs of a batch
 * are joined (those of a single request are read where they lie), the session is run, and each
 * request gets its rows. One session and one thread of it for each instance of a model.
 *
 * It knows models whose inputs and outputs are tensors of numbers and, where Triton batches, have
 * the batch as their first dimension. Both interfaces are binary ones, so no headers are needed:
 * Triton's is a set of functions that the server's executable has, ONNX Runtime's a table of
 * functions whose first places never change.
 *
 *   cc -O2 -shared -fPIC -o libtriton_onnxruntime.so triton_onnxruntime.c ./libonnxruntime.so.1
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TENSORS_MAX = 8, DIMENSIONS_MAX = 8, REQUESTS_MAX = 1024 };

/* Triton. Errors are objects, NULL is success. */

typedef struct TRITONSERVER_Error Error;
typedef struct TRITONBACKEND_Model Model;
typedef struct TRITONBACKEND_ModelInstance Instance;
typedef struct TRITONBACKEND_Request Request;
typedef struct TRITONBACKEND_Response Response;
typedef struct TRITONBACKEND_Input Input;
typedef struct TRITONBACKEND_Output Output;
enum { ERROR_INTERNAL = 1, ON_CPU = 0, RELEASE_ALL = 1, RESPONSE_FINAL = 1 };

Error *TRITONSERVER_ErrorNew(int code, const char *text);
void TRITONSERVER_ErrorDelete(Error *);
Error *TRITONBACKEND_ModelRepository(Model *, int *kind, const char **location);
Error *TRITONBACKEND_ModelVersion(Model *, uint64_t *version);
Error *TRITONBACKEND_ModelInstanceModel(Instance *, Model **);
Error *TRITONBACKEND_ModelInstanceState(Instance *, void **state);
Error *TRITONBACKEND_ModelInstanceSetState(Instance *, void *state);
Error *TRITONBACKEND_ModelInstanceReportStatistics(
    Instance *, Request *, bool success, uint64_t start_ns, uint64_t compute_start_ns,
    uint64_t compute_end_ns, uint64_t end_ns);
Error *TRITONBACKEND_ModelInstanceReportBatchStatistics(
    Instance *, uint64_t batch, uint64_t start_ns, uint64_t compute_start_ns,
    uint64_t compute_end_ns, uint64_t end_ns);
Error *TRITONBACKEND_RequestInput(Request *, const char *name, Input **);
Error *TRITONBACKEND_RequestRelease(Request *, uint32_t flags);
Error *TRITONBACKEND_InputProperties(
    Input *, const char **name, int *type, const int64_t **shape, uint32_t *dimensions,
    uint64_t *bytes, uint32_t *buffers);
Error *TRITONBACKEND_InputBuffer(
    Input *, uint32_t index, const void **data, uint64_t *bytes, int *memory, int64_t *device);
Error *TRITONBACKEND_ResponseNew(Response **, Request *);
Error *TRITONBACKEND_ResponseOutput(
    Response *, Output **, const char *name, int type, const int64_t *shape, uint32_t dimensions);
Error *TRITONBACKEND_OutputBuffer(
    Output *, void **data, uint64_t bytes, int *memory, int64_t *device);
Error *TRITONBACKEND_ResponseSend(Response *, uint32_t flags, Error *);

/* ONNX Runtime: places in its table, and what they hold. A status of NULL is success. */

typedef void Status;
typedef void Ort;
struct OrtApiBase {
  void *const *(*api)(uint32_t version);
  const char *(*version)(void);
};
const struct OrtApiBase *OrtGetApiBase(void);
static void *const *ort;

#define MESSAGE ((const char *(*)(const Status *))ort[2])
#define CREATE_ENV ((Status * (*)(int, const char *, Ort **)) ort[3])
#define CREATE_SESSION ((Status * (*)(Ort *, const char *, Ort *, Ort **)) ort[7])
#define RUN                                                                                     \
  ((Status * (*)(Ort *, Ort *, const char *const *, Ort *const *, size_t, const char *const *,  \
                 size_t, Ort **)) ort[9])
#define CREATE_OPTIONS ((Status * (*)(Ort **)) ort[10])
#define SET_THREADS ((Status * (*)(Ort *, int)) ort[24])
#define INPUT_COUNT ((Status * (*)(Ort *, size_t *)) ort[30])
#define OUTPUT_COUNT ((Status * (*)(Ort *, size_t *)) ort[31])
#define INPUT_NAME ((Status * (*)(Ort *, size_t, Ort *, char **)) ort[36])
#define OUTPUT_NAME ((Status * (*)(Ort *, size_t, Ort *, char **)) ort[37])
#define TENSOR_OF_DATA \
  ((Status * (*)(Ort *, const void *, size_t, const int64_t *, size_t, int, Ort **)) ort[49])
#define DATA ((Status * (*)(Ort *, void **)) ort[51])
#define ELEMENT_TYPE ((Status * (*)(Ort *, int *)) ort[60])
#define DIMENSION_COUNT ((Status * (*)(Ort *, size_t *)) ort[61])
#define DIMENSIONS ((Status * (*)(Ort *, int64_t *, size_t)) ort[62])
#define TYPE_AND_SHAPE ((Status * (*)(Ort *, Ort **)) ort[65])
#define CPU_MEMORY ((Status * (*)(int, int, Ort **)) ort[69])
#define DEFAULT_ALLOCATOR ((Status * (*)(Ort **)) ort[78])
#define RELEASE_STATUS ((void (*)(Status *))ort[93])
#define RELEASE_SESSION ((void (*)(Ort *))ort[95])
#define RELEASE_VALUE ((void (*)(Ort *))ort[96])
#define RELEASE_SHAPE ((void (*)(Ort *))ort[99])

/* Triton's data types in its order, BOOL being 1: ONNX's number and the bytes of an element. */
static const struct { int onnx, bytes; } TYPES[] = {
    {0, 0}, {9, 1}, {2, 1}, {4, 2}, {12, 4}, {13, 8}, {3, 1},
    {5, 2}, {6, 4}, {7, 8}, {10, 2}, {1, 4}, {11, 8},
};
enum { TYPE_COUNT = sizeof TYPES / sizeof *TYPES };

struct state {
  Ort *session, *memory;
  size_t inputs, outputs;
  char *input[TENSORS_MAX], *output[TENSORS_MAX];
  char *joined[TENSORS_MAX]; /* where the inputs of several requests are put together */
  size_t joined_bytes[TENSORS_MAX];
};

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static Error *failure(Status *status) {
  Error *error = TRITONSERVER_ErrorNew(ERROR_INTERNAL, MESSAGE(status));
  RELEASE_STATUS(status);
  return error;
}

#define TRY(call)             \
  do {                        \
    Error *error_ = (call);   \
    if (error_) return error_; \
  } while (0)
#define TRY_ORT(call)                          \
  do {                                         \
    Status *status_ = (call);                  \
    if (status_) return failure(status_);      \
  } while (0)
#define REQUIRE(truth, text) \
  do {                       \
    if (!(truth)) return TRITONSERVER_ErrorNew(ERROR_INTERNAL, text); \
  } while (0)

static Error *open_session(struct state *state, const char *path) {
  static Ort *env; /* instances are made one after another */
  Ort *options, *allocator;
  if (!env) {
    ort = OrtGetApiBase()->api(1);
    TRY_ORT(CREATE_ENV(2, "triton", &env));
  }
  TRY_ORT(CREATE_OPTIONS(&options));
  TRY_ORT(SET_THREADS(options, 1));
  TRY_ORT(CREATE_SESSION(env, path, options, &state->session));
  TRY_ORT(CPU_MEMORY(0, 0, &state->memory));
  TRY_ORT(DEFAULT_ALLOCATOR(&allocator));
  TRY_ORT(INPUT_COUNT(state->session, &state->inputs));
  TRY_ORT(OUTPUT_COUNT(state->session, &state->outputs));
  REQUIRE(state->inputs <= TENSORS_MAX && state->outputs <= TENSORS_MAX, "too many tensors");
  for (size_t i = 0; i < state->inputs; i++)
    TRY_ORT(INPUT_NAME(state->session, i, allocator, &state->input[i]));
  for (size_t i = 0; i < state->outputs; i++)
    TRY_ORT(OUTPUT_NAME(state->session, i, allocator, &state->output[i]));
  return NULL;
}

Error *TRITONBACKEND_ModelInstanceInitialize(Instance *instance) {
  struct state *state = calloc(1, sizeof *state);
  Model *model;
  const char *folder;
  char path[4096];
  uint64_t version;
  int kind;
  REQUIRE(state, "no memory");
  TRY(TRITONBACKEND_ModelInstanceModel(instance, &model));
  TRY(TRITONBACKEND_ModelRepository(model, &kind, &folder));
  TRY(TRITONBACKEND_ModelVersion(model, &version));
  snprintf(path, sizeof path, "%s/%llu/model.onnx", folder, (unsigned long long)version);
  TRY(open_session(state, path));
  return TRITONBACKEND_ModelInstanceSetState(instance, state);
}

Error *TRITONBACKEND_ModelInstanceFinalize(Instance *instance) {
  struct state *state;
  TRY(TRITONBACKEND_ModelInstanceState(instance, (void **)&state));
  if (state) {
    for (size_t i = 0; i < state->inputs; i++) free(state->joined[i]);
    RELEASE_SESSION(state->session);
    free(state);
  }
  return NULL;
}

/* Adds the bytes of an input of one request at `to`, or says where they are if they lie together
 * and `to` is NULL. */
static Error *gather(Input *input, uint32_t buffers, char *to, const void **lies_at) {
  for (uint32_t i = 0; i < buffers; i++) {
    const void *data;
    uint64_t bytes;
    int memory = ON_CPU;
    int64_t device = 0;
    TRY(TRITONBACKEND_InputBuffer(input, i, &data, &bytes, &memory, &device));
    if (to) {
      memcpy(to, data, bytes);
      to += bytes;
    } else {
      *lies_at = data;
    }
  }
  return NULL;
}

/* Makes the tensor of input `i` for all requests; `rows` gets each one's first dimension. */
static Error *join(struct state *state, size_t i, Request **requests, uint32_t count,
                   int64_t *rows, Ort **tensor) {
  Input *inputs[REQUESTS_MAX];
  uint32_t buffers[REQUESTS_MAX], dimensions = 0;
  uint64_t sizes[REQUESTS_MAX], total = 0;
  int64_t shape[DIMENSIONS_MAX] = {0}, first = 0;
  const void *data = NULL;
  int type = 0;
  for (uint32_t r = 0; r < count; r++) {
    const int64_t *own;
    TRY(TRITONBACKEND_RequestInput(requests[r], state->input[i], &inputs[r]));
    TRY(TRITONBACKEND_InputProperties(
        inputs[r], NULL, &type, &own, &dimensions, &sizes[r], &buffers[r]));
    REQUIRE(dimensions > 0 && dimensions <= DIMENSIONS_MAX, "not a tensor with a batch");
    REQUIRE(type > 0 && type < TYPE_COUNT, "not a tensor of numbers");
    memcpy(shape, own, dimensions * sizeof *shape);
    rows[r] = own[0];
    first += own[0];
    total += sizes[r];
  }
  shape[0] = first;
  if (count > 1 || buffers[0] != 1) {
    if (state->joined_bytes[i] < total) {
      free(state->joined[i]);
      state->joined_bytes[i] = 0;
      state->joined[i] = malloc(total);
      REQUIRE(state->joined[i], "no memory");
      state->joined_bytes[i] = total;
    }
    char *to = state->joined[i];
    for (uint32_t r = 0; r < count; to += sizes[r++])
      TRY(gather(inputs[r], buffers[r], to, NULL));
    data = state->joined[i];
  } else {
    TRY(gather(inputs[0], 1, NULL, &data));
  }
  TRY_ORT(TENSOR_OF_DATA(
      state->memory, data, total, shape, dimensions, TYPES[type].onnx, tensor));
  return NULL;
}

/* Gives each response its rows of one output. */
static Error *split(const char *name, Ort *tensor, Response **responses, uint32_t count,
                    const int64_t *rows) {
  Ort *info;
  int onnx, type = 1;
  size_t dimensions;
  int64_t shape[DIMENSIONS_MAX];
  char *data;
  TRY_ORT(TYPE_AND_SHAPE(tensor, &info));
  Status *status = ELEMENT_TYPE(info, &onnx);
  if (!status) status = DIMENSION_COUNT(info, &dimensions);
  if (!status && dimensions <= DIMENSIONS_MAX) status = DIMENSIONS(info, shape, dimensions);
  RELEASE_SHAPE(info);
  TRY_ORT(status);
  REQUIRE(dimensions > 0 && dimensions <= DIMENSIONS_MAX, "an output without a batch");
  while (type < TYPE_COUNT && TYPES[type].onnx != onnx) type++;
  REQUIRE(type < TYPE_COUNT, "an output that is not of numbers");
  uint64_t row_bytes = (uint64_t)TYPES[type].bytes;
  for (size_t d = 1; d < dimensions; d++) row_bytes *= (uint64_t)shape[d];
  TRY_ORT(DATA(tensor, (void **)&data));
  for (uint32_t r = 0; r < count; r++) {
    Output *output;
    void *to;
    int memory = ON_CPU;
    int64_t device = 0;
    uint64_t bytes = row_bytes * (uint64_t)rows[r];
    shape[0] = rows[r];
    TRY(TRITONBACKEND_ResponseOutput(
        responses[r], &output, name, type, shape, (uint32_t)dimensions));
    TRY(TRITONBACKEND_OutputBuffer(output, &to, bytes, &memory, &device));
    memcpy(to, data, bytes);
    data += bytes;
  }
  return NULL;
}

struct times {
  uint64_t start, compute_start, compute_end;
};

static Error *infer(struct state *state, Request **requests, Response **responses, uint32_t count,
                    int64_t *rows, Ort **in, Ort **out, struct times *times) {
  for (size_t i = 0; i < state->inputs; i++)
    TRY(join(state, i, requests, count, rows, &in[i]));
  times->compute_start = now_ns();
  Status *status = RUN(state->session, NULL, (const char *const *)state->input, in, state->inputs,
                       (const char *const *)state->output, state->outputs, out);
  times->compute_end = now_ns();
  TRY_ORT(status);
  for (size_t i = 0; i < state->outputs; i++)
    TRY(split(state->output[i], out[i], responses, count, rows));
  return NULL;
}

static void report(Instance *instance, Request **requests, uint32_t count, const int64_t *rows,
                   bool success, const struct times *times) {
  uint64_t end = now_ns(), batch = 0;
  for (uint32_t r = 0; r < count; r++) {
    batch += (uint64_t)rows[r];
    TRITONBACKEND_ModelInstanceReportStatistics(
        instance, requests[r], success, times->start, times->compute_start, times->compute_end,
        end);
  }
  if (success)
    TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance, batch, times->start, times->compute_start, times->compute_end, end);
}

Error *TRITONBACKEND_ModelInstanceExecute(Instance *instance, Request **requests, uint32_t count) {
  struct state *state;
  struct times times = {now_ns(), 0, 0};
  Response *responses[REQUESTS_MAX];
  int64_t rows[REQUESTS_MAX] = {0};
  Ort *in[TENSORS_MAX] = {0}, *out[TENSORS_MAX] = {0};
  REQUIRE(count <= REQUESTS_MAX, "too many requests");
  TRY(TRITONBACKEND_ModelInstanceState(instance, (void **)&state));
  for (uint32_t r = 0; r < count; r++) TRY(TRITONBACKEND_ResponseNew(&responses[r], requests[r]));
  Error *error = infer(state, requests, responses, count, rows, in, out, &times);
  for (uint32_t r = 0; r < count; r++) {
    Error *told = error ? TRITONSERVER_ErrorNew(ERROR_INTERNAL, "the run failed") : NULL;
    TRITONBACKEND_ResponseSend(responses[r], RESPONSE_FINAL, told);
    if (told) TRITONSERVER_ErrorDelete(told);
  }
  for (size_t i = 0; i < state->inputs; i++)
    if (in[i]) RELEASE_VALUE(in[i]);
  for (size_t i = 0; i < state->outputs; i++)
    if (out[i]) RELEASE_VALUE(out[i]);
  report(instance, requests, count, rows, !error, &times);
  for (uint32_t r = 0; r < count; r++) TRITONBACKEND_RequestRelease(requests[r], RELEASE_ALL);
  if (error) TRITONSERVER_ErrorDelete(error);
  return NULL;
}
