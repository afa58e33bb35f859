// Run the package's model on its test inputs and hold what it puts out against the expected outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example -I"$ORT_HOME/include" -L"$ORT_HOME/lib" -lonnxruntime
//   LD_LIBRARY_PATH="$ORT_HOME/lib" ./example              in the package's folder; or: ./example model.onnx
//
// ORT_HOME is an unpacked release of ONNX Runtime 1.16 or newer, or a build of your own (see README.md).
// Exit code 0: they agree; 1: they do not, or the model does not run.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

template <class T>
double number(const char* data, size_t index) {
  return static_cast<double>(reinterpret_cast<const T*>(data)[index]);
}

template <>
double number<Ort::Float16_t>(const char* data, size_t index) {
  return reinterpret_cast<const Ort::Float16_t*>(data)[index].ToFloat();
}

struct Tensor {
  const char* name;
  const char* file;  // little-endian numbers in C order
  std::vector<int64_t> shape;
  ONNXTensorElementDataType type;
  double (*number)(const char*, size_t);

  std::vector<char> read() const {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw std::runtime_error(std::string("cannot read ") + file);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
};

const std::vector<Tensor> inputs = {
$inputs
};
const std::vector<Tensor> outputs = {
$outputs
};
const double allowed = $tolerance;

// max |found - expected| / max |expected|
double relative_error(const Ort::Value& found, const Tensor& tensor) {
  const auto info = found.GetTensorTypeAndShapeInfo();
  if (info.GetShape() != tensor.shape || info.GetElementType() != tensor.type) return INFINITY;
  const std::vector<char> expected = tensor.read();
  double worst = 0, scale = 0;
  for (size_t i = 0; i < info.GetElementCount(); ++i) {
    const double wanted = tensor.number(expected.data(), i);
    const double off = std::abs(tensor.number(static_cast<const char*>(found.GetTensorRawData()), i) - wanted);
    if (!(off <= worst)) worst = off;  // a NaN stays
    scale = std::max(scale, std::abs(wanted));
  }
  return scale > 0 ? worst / scale : worst;
}

int main(int argc, char** argv) try {
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "example");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(env, argc > 1 ? argv[1] : "model.ort", options);

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::vector<char>> data;  // the values below look into it
  std::vector<Ort::Value> values;
  std::vector<const char*> input_names, output_names;
  for (const Tensor& input : inputs) {
    data.push_back(input.read());
    values.push_back(Ort::Value::CreateTensor(memory, data.back().data(), data.back().size(), input.shape.data(),
                                              input.shape.size(), input.type));
    input_names.push_back(input.name);
  }
  for (const Tensor& output : outputs) output_names.push_back(output.name);
  const auto found = session.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(), values.size(),
                                 output_names.data(), output_names.size());

  double error = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const double one = relative_error(found[i], outputs[i]);
    if (!(one <= error)) error = one;
  }
  std::printf("relative error %.1e, allowed %.1e\n", error, allowed);
  return error <= allowed ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
